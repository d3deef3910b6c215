"""Configuration: dataclasses are the schema, the YAML files fill it, flags and overrides win."""
