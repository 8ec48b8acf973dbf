"""What an operator opens: Grafana's boards, built from code. docs/observability.md shows them."""
