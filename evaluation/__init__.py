"""From a trained model to numbers, figures and the report."""
