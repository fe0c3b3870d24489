"""The server's HTTP side: OpenAI's API, the single prompt, probes and metrics, on top of any Engine."""
