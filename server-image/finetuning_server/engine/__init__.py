"""Generation for many requests at once: one base model in memory, any number of adapters beside it."""
