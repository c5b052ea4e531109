"""Own data of the usual annotation formats: read, checked, split and described for a configuration."""
