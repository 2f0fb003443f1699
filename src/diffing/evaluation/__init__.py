"""The benchmark: every method scored on organisms whose change is known, and on nulls, without a judge model."""
