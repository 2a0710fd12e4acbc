"""SGLang's dialect, built to its documented formats; not run against the real engine yet."""
