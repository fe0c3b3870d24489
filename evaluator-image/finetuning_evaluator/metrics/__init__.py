"""The metrics: each turns scores or texts of one candidate into observations per row."""
