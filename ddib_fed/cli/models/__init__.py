"""Commands that need no node: models, translations in one process, evaluation."""
