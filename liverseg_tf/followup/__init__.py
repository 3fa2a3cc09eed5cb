"""Follow-up of one patient: registration of scans, lesions over time, response."""
