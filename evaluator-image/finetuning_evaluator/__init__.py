"""Evaluation of the candidates base, tuned and reference, with confidence intervals, a gate and a report."""
