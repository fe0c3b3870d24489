"""Training of an adapter, or of all weights, for any causal language model that PEFT supports."""
