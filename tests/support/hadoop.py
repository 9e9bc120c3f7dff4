"""A real HDFS: a name node and a data node of Hadoop 2.7.3, whose classes are in the package pyspark 2.4.8.

The name node's WebHDFS needs Jersey 1, which Debian has. The jars, 220 MB to fetch, are kept in `JARS`:
`python -m tests.support.hadoop` brings them there.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.ports import free_port
from tests.support.server_group import ServerGroup

JARS = Path.home() / ".cache/luxfuse-tests/hadoop-2.7.3"
PACKAGE = "pyspark==2.4.8"
OLD_BUILD = "pypandoc<1.6\n"
"""What pip needs to be told to fetch the package: its setup.py calls a function that later ones have not."""
NEEDED = ("hadoop-annotations", "hadoop-auth", "hadoop-common", "hadoop-hdfs", "jetty-6", "jetty-util", "netty-3",
          "netty-all", "protobuf-java", "commons-", "guava", "htrace-core", "leveldbjni", "log4j", "slf4j", "xercesImpl",
          "xmlenc", "javax.servlet-api", "jsp-api", "jackson-core-asl", "jackson-mapper-asl", "jaxb-api", "activation",
          "httpclient", "httpcore")  # fmt: skip
OF_DEBIAN = [f"/usr/share/java/{name}.jar" for name in
             ("jsr311-api", "jersey1-core", "jersey1-server", "jersey1-servlet", "jersey1-json")]  # fmt: skip
INSTALL = "apt-get install default-jre-headless libjersey1-server-java libjersey1-servlet-java libjersey1-json-java"

OPTIONS = [
    # Hadoop of that time looks into Java of that time.
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "-Djava.net.preferIPv4Stack=true", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
]  # fmt: skip
LOG = """\
log4j.rootLogger=WARN,out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.SimpleLayout
"""


def fetch() -> None:
    """Bring the jars to `JARS`, whole or not at all."""
    if JARS.exists():
        return
    JARS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=JARS.parent) as base:
        constraints = Path(base, "constraints")
        constraints.write_text(OLD_BUILD)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", base, PACKAGE]
        subprocess.run(command, check=True, env={**os.environ, "PIP_CONSTRAINT": str(constraints)})
        (archive,) = Path(base).glob("pyspark-*.tar.gz")
        found = Path(base, "jars")
        found.mkdir()
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.rpartition("/")[2]
                if "/deps/jars/" in member.name and name.startswith(NEEDED) and (source := packed.extractfile(member)):
                    (found / name).write_bytes(source.read())
        found.rename(JARS)


class Hadoop(ServerGroup):
    """``url`` is the name node's, ``web_url`` that of its WebHDFS."""

    name = "hadoop"
    start_timeout_s = 60.0
    kept_from = ("HADOOP_", "JAVA_")

    def __init__(self) -> None:
        super().__init__()
        self._ports: dict[str, int] = {}

    @staticmethod
    def available() -> str | None:
        if shutil.which("java") is None or not all(map(os.path.exists, OF_DEBIAN)):
            return f"needs Java and Jersey 1 (Debian: {INSTALL})"
        return None if JARS.exists() else f"needs {JARS}: run python -m tests.support.hadoop"

    @property
    def url(self) -> str:
        return f"hdfs://127.0.0.1:{self._ports['name']}"

    @property
    def web_url(self) -> str:
        return f"webhdfs://127.0.0.1:{self._ports['web']}"

    def _launch(self) -> None:
        """Format, and start both; returns when the data node takes blocks."""
        self._configure()
        self._run(*self._java("namenode.NameNode", "-format", "-nonInteractive"))
        self.restart()

    def restart(self) -> None:
        """Cut all connections, and serve again."""
        self._end()
        self._begin()
        self._spawn("name", *self._java("namenode.NameNode"))
        self._spawn("data", *self._java("datanode.DataNode"))
        self._wait("Hadoop", lambda: self._serves("data-web") and self._serves("name") and self._takes_blocks())

    def _configure(self) -> None:
        names = ("name", "web", "data", "data-web", "data-ipc")
        self._ports |= {name: free_port() for name in names}
        ports = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
        settings = {
            "fs.defaultFS": f"hdfs://{ports['name']}",
            "hadoop.tmp.dir": f"{self.base}/tmp",
            "dfs.namenode.name.dir": f"file://{self.base}/names",
            "dfs.datanode.data.dir": f"file://{self.base}/blocks",
            "dfs.namenode.http-address": ports["web"],
            "dfs.datanode.address": ports["data"],
            "dfs.datanode.http.address": ports["data-web"],
            "dfs.datanode.ipc.address": ports["data-ipc"],
            "dfs.datanode.hostname": "127.0.0.1",
            "dfs.replication": "1",
            "dfs.namenode.safemode.extension": "0",
            # A full disk of the machine is no concern of the tests.
            "dfs.namenode.resource.du.reserved": "0",
        }
        rows = "".join(f"<property><name>{n}</name><value>{v}</value></property>\n" for n, v in settings.items())
        conf = self.base / "conf"
        conf.mkdir()
        for name in ("core-site.xml", "hdfs-site.xml"):
            (conf / name).write_text(f"<configuration>\n{rows}</configuration>\n")
        (conf / "log4j.properties").write_text(LOG)
        for name in ("hdfs", "datanode", "static"):  # the pages of its console, which the jars have not
            (conf / "webapps" / name / "WEB-INF").mkdir(parents=True)
            (conf / "webapps" / name / "WEB-INF" / "web.xml").write_text("<web-app></web-app>\n")

    def _java(self, main: str, *arguments: str) -> list[str]:
        path = ":".join([f"{self.base}/conf", *map(str, sorted(JARS.iterdir())), *OF_DEBIAN])
        return ["java", *OPTIONS, f"-Djava.io.tmpdir={self.base}", "-cp", path, f"org.apache.hadoop.hdfs.server.{main}",
                *arguments]  # fmt: skip

    def _serves(self, name: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._ports[name]), 1):
                return True
        except OSError:
            return False

    def _takes_blocks(self) -> bool:
        import requests

        url = f"http://127.0.0.1:{self._ports['web']}/webhdfs/v1/.ready?op=CREATE&overwrite=true&user.name={getpass.getuser()}"
        try:
            place = requests.put(url, allow_redirects=False, timeout=5).headers.get("Location")
            return place is not None and requests.put(place, data=b"x", timeout=5).status_code == 201
        except OSError:
            return False


if __name__ == "__main__":
    fetch()
