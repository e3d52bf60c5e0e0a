"""Conformance kits: what an agent or a device of one's own has to do, as test classes to inherit from.

``agent_cases.AgentCases`` and ``hardware_cases.HardwareModelCases``; their failures say what is wrong and how to mend it.
``toy`` has the small problem that they search.
"""
