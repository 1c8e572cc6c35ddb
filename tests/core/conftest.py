from hypothesis import HealthCheck, settings

# The machine may be busy; how long an example takes says nothing about the core.
settings.register_profile("core", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("core")
