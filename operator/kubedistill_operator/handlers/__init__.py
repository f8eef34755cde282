"""What keeps the pass going: triggers (kopf), the work queue, the pass, leader election, probes. No decisions here."""
