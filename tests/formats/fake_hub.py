"""What the Hugging Face Hub answers to the requests of pushing and fetching, on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"
SHA = "c0ffee" + "0" * 34


class FakeHub:
    """Repositories as dictionaries of files; `url` is where it listens."""

    def __init__(self):
        self.repos = {}
        self.private = {}
        self.blobs = {}
        self.requests = []
        self.takes_files = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def reply(self, status, content=b"", **headers):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def answer(self):
                path = self.path.split("?")[0]
                hub.requests.append(f"{self.command} {path}")
                hub.answer(self, path, self.body())

            do_GET = do_HEAD = do_POST = do_PUT = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, path, body):
        writes = request.command in ("POST", "PUT") and not path.startswith("/blob/")
        if writes and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return request.reply(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.repos
            self.repos.setdefault(name, {})
            self.private[name] = (
                asked.get("private") is True or asked.get("visibility") == "private"
            )
            return request.reply(409 if known else 200, {"url": f"{self.url}/{name}"})
        if path == "/api/validate-yaml":
            return request.reply(200, {"errors": [], "warnings": []})
        if path.startswith("/blob/"):
            self.blobs[path.removeprefix("/blob/")] = body
            return request.reply(200 if self.takes_files else 403)
        for name, files in self.repos.items():
            if path.startswith((f"/api/models/{name}", f"/{name}")):
                return self.in_repo(request, name, files, path.split(name, 1)[1], body)
        return request.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def in_repo(self, request, name, files, path, body):
        kind = path.strip("/").split("/")[0]
        if kind == "preupload":
            told = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return request.reply(200, {"files": told})
        if path == ".git/info/lfs/objects/batch":
            told = [
                {**o, "actions": {"upload": {"href": f"{self.url}/blob/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return request.reply(200, {"transfer": "basic", "objects": told})
        if kind == "commit":
            self.commit(files, body)
            about = {"commitUrl": f"{self.url}/{name}/commit/{SHA}", "commitOid": SHA}
            return request.reply(200, {"success": True, "pullRequestUrl": None, **about})
        if kind == "tree":
            told = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
            return request.reply(200, told)
        if kind == "resolve":
            data = files.get(path.split("/", 3)[3])
            if data is None:
                return request.reply(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            return request.reply(200, data, ETag=tag, X_Repo_Commit=SHA)
        siblings = [{"rfilename": p} for p in files]
        about = {"_id": "1", "id": name, "modelId": name, "sha": SHA, "siblings": siblings}
        return request.reply(200, {**about, "private": self.private[name], "tags": []})

    def commit(self, files, body):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                data = self.blobs[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                files[value["path"]] = data
