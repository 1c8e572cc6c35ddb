def pytest_addoption(parser):
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what happens now into tests/traces/*.txt, to be reviewed in git",
    )
