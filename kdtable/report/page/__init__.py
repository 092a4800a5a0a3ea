"""The sections of the HTML page: each module prepares one for its template. None reads the store."""
