"""Results as tables, sentences, charts and pages."""
