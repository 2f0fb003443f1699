"""How colours, tokens and numbers look to people; shared by the report and the dashboard."""
