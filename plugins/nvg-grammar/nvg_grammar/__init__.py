"""Text in a given form: the sampler `grammar` of nvg. llguidance is imported when the sampler is used."""

from nvg import hookimpl


@hookimpl
def nvg_register_samplers(register):
    register("grammar", "nvg_grammar.sampler:Grammar")
