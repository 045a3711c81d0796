"""From records and published tables to markdown pages and figures."""
