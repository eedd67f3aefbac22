%% SPDX-License-Identifier: Apache-2.0
%%
%% A carrier that is inet_tcp, but starts the registry side of chatter_epmd with its child
%% specifications, as Chatter's does for `-no_epmd'. Used by chatter_epmd_nodes_SUITE.
-module(chatter_epmd_test_dist).

-export([childspecs/0, listen/2, accept/1, accept_connection/5, setup/5, close/1, select/1,
         address/0, is_node_name/1]).

childspecs() ->
    {ok, [#{id => chatter_epmd_sup, start => {chatter_epmd, start_link, []},
            type => supervisor, shutdown => 2000}]}.

listen(Name, Host) -> inet_tcp_dist:listen(Name, Host).
accept(Listen) -> inet_tcp_dist:accept(Listen).
accept_connection(A, S, N, Allowed, T) -> inet_tcp_dist:accept_connection(A, S, N, Allowed, T).
setup(Node, Type, Own, Names, T) -> inet_tcp_dist:setup(Node, Type, Own, Names, T).
close(Listen) -> inet_tcp_dist:close(Listen).
select(Node) -> inet_tcp_dist:select(Node).
address() -> inet_tcp_dist:address().
is_node_name(Node) -> inet_tcp_dist:is_node_name(Node).
