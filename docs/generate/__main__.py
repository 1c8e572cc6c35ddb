"""`make docs`: rewrites what of the documents is generated, and names the pages that changed."""

from docs.generate.pages import differing

if __name__ == "__main__":
    for path, text in differing().items():
        path.write_text(text)
        print(path)
