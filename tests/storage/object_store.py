"""An object store as fsspec has them: directories are only prefixes, and a file is there once its stream is closed."""

import threading

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class ObjectStore(AbstractFileSystem):
    protocol = ("gs", "gcs")
    objects = {}  # noqa: RUF012  one store, as there is one Google
    versions = {}  # noqa: RUF012
    lock = threading.Lock()

    def _open(self, path, mode="rb", block_size=None, **options):
        return Stream(self, path, mode, block_size or 1 << 20, **options)

    def store(self, path, data):
        with self.lock:
            self.objects[path] = data
            self.versions[path] = self.versions.get(path, 0) + 1

    def cat_file(self, path, start=None, end=None, **options):
        try:
            return self.objects[self._strip_protocol(path)][start:end]
        except KeyError:
            raise FileNotFoundError(path) from None

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        if path in self.objects:
            found = [self._entry(path)]
        else:
            found = self._below(path)
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [each["name"] for each in found]

    def _below(self, path):
        found = {}
        for name in sorted(self.objects):
            if name.startswith(f"{path}/"):
                head, slash, _ = name.removeprefix(f"{path}/").partition("/")
                at = f"{path}/{head}"
                found[at] = {"name": at, "size": 0, "type": "directory"} if slash else self._entry(at)
        return list(found.values())

    def _entry(self, path):
        return {
            "name": path,
            "size": len(self.objects[path]),
            "type": "file",
            "generation": self.versions[path],
        }

    def cp_file(self, old, new, **options):
        self.store(new, self.cat_file(old))

    def _rm(self, path):
        with self.lock:
            if self.objects.pop(self._strip_protocol(path), None) is None:
                raise FileNotFoundError(path)


class Stream(AbstractBufferedFile):
    """Keeps the blocks until the last, as an upload in parts does."""

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.store(self.path, b"".join(self.parts))
        return True

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)

    def discard(self):
        self.parts = []
