"""See what you train: layer tables, contact sheets, plots, the run's report, suspects, comparisons. No torch."""
