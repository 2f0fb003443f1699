"""From a spec to a pair of loaded models: sources, adapters, sites, read-out."""
