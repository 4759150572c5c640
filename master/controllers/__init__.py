"""Control loops as pure functions: objects in, changes out."""
