"""Runs asked for in the browser: what is going on, and the form that starts one."""

import streamlit as st

from diffing.core.method import load_method, method_names
from diffing.dashboard.jobs import Job, cancel, command_of, jobs, progress, start
from diffing.dashboard.moving import page_link
from diffing.dashboard.site import Site, without
from diffing.dashboard.subjects import Subject, configured, options
from diffing.ui.text import plain

_SHOWN = 5
_EVERY = 1.5
_FIRST = "kl"


def running(site: Site) -> None:
    """The jobs that were started here: those still going on with their progress, and how the last ended."""
    found = jobs(site.base_dir)[:_SHOWN]
    if not found:
        return
    is_going_on = any(progress(j).state == "running" for j in found)
    st.fragment(_jobs, run_every=_EVERY if is_going_on else None)(site, is_going_on)


def _jobs(site: Site, was_going_on: bool) -> None:
    found = jobs(site.base_dir)[:_SHOWN]
    states = {j.id: progress(j) for j in found}
    live = [j for j in found if states[j.id].state == "running"]
    ended = [j for j in found if states[j.id].state != "running"]
    for job in live:
        _live(job)
    if ended:
        with st.expander(f"Last runs started here ({len(ended)})", expanded=was_going_on or not live):
            for job in ended:
                _ended(job)
    if was_going_on and not live:
        st.rerun(scope="app")


def _live(job: Job) -> None:
    at = progress(job)
    with st.container(border=True):
        left, right = st.columns([5, 1], vertical_alignment="center")
        left.progress(0.0 if at.share is None else at.share, text=plain(at.title))
        left.caption(plain(job.command))
        if right.button("Cancel", key=f"cancel-{job.id}", icon=":material/stop_circle:"):
            cancel(job)
            st.rerun(scope="app")
        with st.expander("What it wrote"):
            st.code("\n".join(at.lines[-15:]) or "nothing yet", language=None)


def _ended(job: Job) -> None:
    at = progress(job)
    show = {"done": st.success, "failed": st.error, "cancelled": st.warning}[at.state]
    show(f"{plain(job.command)}  \n{plain(at.title)}")
    for folder in at.results:
        run = "/".join(folder.parts[-4:])
        page_link("result", f"Open {plain(run)}", ":material/query_stats:", run=run)


def new_run(site: Site, is_first: bool = False) -> None:
    """The form that starts a run, and the command that does the same in a terminal."""
    form = st.expander(
        "Start a run", expanded=is_first, icon=":material/play_arrow:", key="run_form", on_change="rerun"
    )
    if not form.open:
        return  # what it holds would take a fifth of the page's time
    known = configured()
    with form:
        first, second, third, fourth = st.columns(4)
        models = list(dict.fromkeys(s.model for s in known))
        model = first.selectbox("Base", models, key="run_model")
        fitting = {s.name: s for s in known if s.model == model}
        name = second.selectbox("Organism", list(fitting), key=f"run_organism_{model}")
        methods = sorted(method_names(), key=lambda m: m != _FIRST)
        method = third.selectbox(
            "By method",
            methods,
            key="run_method",
            help="  \n".join(f"**{m}**: {load_method(m).summary}" for m in methods),
        )
        tokens = fourth.number_input(
            "Tokens per dataset", 100, None, None, 1000, key="run_tokens", placeholder="the default",
            help="`data.max_tokens`: 10,000 on embedded data unless given.",
        )  # fmt: skip
        overrides = _overrides(site, fitting[name], method, tokens)
        command, shown = command_of(site.launch.main, overrides)
        st.code(shown, language="bash", wrap_lines=True)
        if st.button("Run the embedded pair" if is_first else "Run it", type="primary", key="run_start"):
            start(command, shown, site.base_dir)
            st.rerun()


def _overrides(site: Site, subject: Subject, method: str, tokens: int | None) -> list[str]:
    more = [*options(subject), f"diffing/method={method}"]
    more += [f"data.max_tokens={tokens}"] if tokens else []
    return [*without(site.launch.overrides, more), *more]
