"""Relocation: brings a source, byte for byte and verified, into an artifact folder."""
