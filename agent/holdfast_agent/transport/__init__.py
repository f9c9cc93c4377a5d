"""How the agent talks to the server: control channel, uploads, downloads, retries."""
