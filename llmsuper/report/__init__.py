"""From records to figures (and, later, markdown)."""
