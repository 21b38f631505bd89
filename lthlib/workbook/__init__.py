"""From a profile to a report: checked parameters, papermill, the `lth` command."""
