"""The test bed itself."""


def test_server_answers_with_rbac(api_server, namespace):
    assert namespace in api_server.must("get", "namespaces")
    refused = api_server.kubectl("get", "pods", "-n", namespace, user="stranger")
    assert "cannot list resource" in refused.stderr
