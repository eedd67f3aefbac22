%% Carries the messages of groups as plain distribution messages: for tests of the server alone.
-module(chatter_group_double).
-behaviour(chatter_group_transport).

-export([attach/0, send/2, incoming/1, net_id/0, start/0]).

attach() -> ok.

send(Targets, Bytes) ->
    lists:foreach(fun(Node) when is_atom(Node) ->
                          _ = spawn(erlang, send, [{chatter_group_srv, Node},
                                                   {chatter_group, Bytes}]);
                     (_) -> ok
                  end, Targets).

incoming({chatter_group, Bytes}) -> {ok, Bytes};
incoming(_) -> none.

net_id() ->
    <<A, B, C, _/binary>> = erlang:md5(atom_to_binary(node())),
    {net_id, {10, A, B, C}, 29999}.

%% Starts the server below a process that has its table.
start() ->
    Starter = self(),
    Pid = spawn(fun() ->
                        process_flag(trap_exit, true),
                        ok = chatter_group_srv:new_table(),
                        {ok, _} = chatter_group_srv:start_link(?MODULE),
                        Starter ! {self(), started},
                        again()
                end),
    receive {Pid, started} -> ok end.

again() ->
    receive {'EXIT', _, _} -> ok end,
    {ok, _} = chatter_group_srv:start_link(?MODULE),
    again().
