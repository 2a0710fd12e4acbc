"""Penstock's autoscaler: turns measured traffic and SLO attainment into desired replicas per pool, with a reason."""
