"""From a spec to batches: read documents, render chats, tokenise with role masks, group by a token budget."""
