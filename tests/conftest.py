"""What every test begins from."""

import signal

# Whoever starts the tests in the background of a shell has these ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
