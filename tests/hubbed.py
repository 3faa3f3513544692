"""A model hub of one folder, for the tests: what huggingface_hub asks of one is answered from the files.

    python tests/hubbed.py FOLDER          prints the port; `org/tiny` is the folder, `org/gated` is refused
"""

import hashlib
import http.server
import json
import pathlib
import sys

COMMIT = "c" * 40
FOLDER = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(".")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nothing is told."""

    def answer(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "org/gated" in path:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="gated")
        if "org/tiny" not in path:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="none")
        if "/resolve/" in path:
            data = (FOLDER / path.rsplit("/", 1)[1]).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            return self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        files = [{"rfilename": file.name, "size": file.stat().st_size, "path": file.name, "type": "file", "oid": "0" * 40}
                 for file in sorted(FOLDER.iterdir())]
        body = files if "/tree/" in path else {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "private": False,
                                               "tags": ["license:apache-2.0"], "siblings": files, "downloads": 0, "likes": 0}
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    do_HEAD = do_GET


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
