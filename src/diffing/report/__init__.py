"""Results → one self-contained HTML page that opens anywhere: no server, no network."""
