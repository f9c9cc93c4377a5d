"""Messages of the control channel, routes and records of the HTTP API."""
