# The demo's traffic as a service, for docker-compose.observability.yml: real conversations, and nobody in the chat.
FROM python:3.12.14-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/glasspoint
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
COPY dashboards ./dashboards
# The extra `cli`, not `demo`: PostgreSQL and Redis have containers of their own.
RUN /opt/glasspoint/bin/pip install --constraint constraints.txt '.[cli,otlp,instrumentation]'

FROM python:3.12.14-slim-trixie
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin glasspoint
COPY --from=build /opt/glasspoint /opt/glasspoint
ENV PATH=/opt/glasspoint/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 9464
# Whether the process lives. /readyz also asks the servers; a lost server is no reason to replace this process.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=5 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9464/healthz', timeout=2)"]
CMD ["glasspoint", "traffic", "--host", "0.0.0.0", "--port", "9464"]
