"""What is read off published artifacts: results, tables, the report, comparisons."""
