"""What every process of Penstock does at its edges: settings, secrets, logs, open files, and ending with its parent.

Router, worker and the command use it. It knows no request, no endpoint and no engine; what a setting means is its owner's.
"""
