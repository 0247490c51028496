"""What the nouns can do: functions of the platform and domain types. No HTTP server, no SQL."""
