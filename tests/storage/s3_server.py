"""An S3 server of the tests' own: moto's, in a process that ends with the one that started it.

moto looks at a condition and writes in two steps; S3 does it in one. So one request after another is handled here.
"""

import io
import os
import subprocess
import sys
import threading
import uuid
from urllib.parse import urlsplit

KEYS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3Server:
    """A server that listens on a free port of loopback. `env` has what a process needs to use it."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint, "the S3 server did not come up"
        self.env = {**KEYS, "S3_ENDPOINT": self.endpoint}
        self.client = self._make_client()

    @property
    def address(self):
        url = urlsplit(self.endpoint)
        return url.hostname, url.port

    def _make_client(self):
        """A plain client of boto3's, to look at what is there."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def make_bucket(self):
        """Make a bucket, and give its name."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def stop(self):
        """End it, as the end of the process that started it does."""
        self.client.close()
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


class Bucket:
    """What is really there: asked without the proxy."""

    def __init__(self, client, name):
        self.client = client
        self.name = name

    def objects(self):
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {each["Key"]: self.read(each["Key"]) for each in found}

    def read(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def write(self, key, data):
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key):
        self.client.delete_object(Bucket=self.name, Key=key)

    def uploads(self):
        """The keys of uploads that nobody has finished."""
        return sorted(
            each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        )

    def begin_upload(self, key):
        self.client.create_multipart_upload(Bucket=self.name, Key=key)


def serve():
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args):
            pass

    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def app(environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with one_at_a_time:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve()
