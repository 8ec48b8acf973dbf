"""What an operator opens: Grafana's boards, built from code. README.md says what each of them answers."""
