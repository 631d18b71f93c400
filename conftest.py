"""Nothing here: the plugin (harness.plugin, by entry point) has all hooks and fixtures."""
