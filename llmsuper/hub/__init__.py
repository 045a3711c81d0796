"""From a model pattern to the rows of its LM head."""
