"""Connected agents, dispatch of jobs, progress."""
