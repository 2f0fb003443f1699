"""What happens when a run is asked for: plan, compute, write, report."""
