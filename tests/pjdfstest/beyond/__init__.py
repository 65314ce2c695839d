"""What users meet beyond the classic groups: locks, mappings, attributes, huge directories, whole programs."""
